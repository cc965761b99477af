"""As-ViT's search (Chen et al., ICLR 2022, arXiv 2202.11921): a topology by scores at initialisation, grown by rule."""
