"""CPU kernels for affine codes: quantised linears and embeddings, compiled by Numba for the CPU they run on.

The micro-kernels are emitted as LLVM IR (`emitter`, `microkernels`), the loops around them are ordinary Numba
(`glue`), and both are cached on disk per CPU level (`build`). `linear` and `embedding` are the modules, `backend` puts
them into a graph.
"""
