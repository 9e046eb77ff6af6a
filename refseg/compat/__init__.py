"""Replacements for other projects' readers, which read built datasets instead. Nothing here imports torch.

In the order in which data passes through them: `refer_source` finds and opens the built dataset. `refer_records` turns
its rows into REFER's records. `image_folder` writes an image's file when a client reads its name. `refer` offers
REFER's API.
"""
