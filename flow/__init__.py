"""The learned wavelet transform: couplings, lifting, the pyramid, and the model made of them."""
