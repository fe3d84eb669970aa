"""What is built on trained models: ensembles, reports, a page to ask them, cross validation, the demo."""
