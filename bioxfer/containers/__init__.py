"""Files of embeddings: what each kind looks like, how it is written, and how it is read.

One module for each kind writes and reads it: `npz`, `hdf5`, `h5ad`, `parquet`; `tables` reads the text tables
and `fairesm` the folders of fair-esm. `stored` holds what they share. No reader unpickles, follows a link to
another file, or believes a size that is not there.
"""

from __future__ import annotations
