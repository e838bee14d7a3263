"""Other ways to merge without training, small and from their papers: nothing here is the product.

All work at full merging: every channel of the merged network stands for one of each source.
"""
