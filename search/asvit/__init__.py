"""As-ViT's search (Chen et al., ICLR 2022, arXiv 2202.11921): score topologies at initialisation, and grow the best."""
