"""What other projects import in the place of their own readers. Nothing here imports torch.

In the order of the data: `refer_source` finds and opens the built dataset that a client means; `refer_records` turns
its rows into REFER's records; `image_folder` gives images their files when a client asks for a name; `refer` is
REFER's API over all of it.
"""
