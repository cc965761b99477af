"""As-ViT (Chen et al., ICLR 2022, arXiv 2202.11921): its genotypes, and the scores that it ranks them by."""
