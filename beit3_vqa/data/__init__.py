"""Index rows -> examples -> tensors -> batches."""
