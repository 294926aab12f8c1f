"""Images: sources, ingestion, records, shards, augmentation and training batches."""
