"""Images: folders, decoding, the training loader, the in-memory evaluation set, and a small data set for trials."""
