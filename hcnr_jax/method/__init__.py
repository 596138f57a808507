"""The paper as pure functions on pytrees: no file, no model family, no logging, no option names.

Stage 1 scores neurons (`fisher`), ranks them (`priority`) and turns ranks into masks (`select`, `certainty`). Stage 2
restores them (`restore`), measures inputs (`curvature`) and corrects kernels (`objectives`, `solve`) block by block in
data-flow order (`sweep`). `refine` takes a last step through the whole network. `taps` reads and replaces
linear layers. `one_call` runs these steps on any Flax model, Linen or NNX.
"""
