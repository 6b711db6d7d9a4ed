"""fastadv's Triton kernels, installed as `fastadv.kernels`. Importing this needs no Triton."""
