"""The paper: pure functions on pytrees. No file, no model family, no logging.

Stage 1 is `fisher` (scores), `select` (masks); stage 2 is `restore` (base where the mask is True), `curvature` (second
moments, Hessian-vector products), `compensate` (the corrections), `blocks` (in the order data flows), on the linear
algebra of `solve`. Beyond the paper, `refine` goes through the whole network at the end.
"""
