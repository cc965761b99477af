"""Images: folders, decoding, the training loader, the in-memory evaluation set, and small sets to try things on."""
