"""A search for the best options: many trainings with options that Optuna proposes."""
