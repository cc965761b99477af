"""As-ViT (Chen et al., ICLR 2022, arXiv 2202.11921): genotypes, and their scores at initialisation."""
