"""What the latents are drawn from, and how they become bytes (source coding).

distribution  discretised logistics and their mixtures, real and in the coder's integers
prior         the hierarchical prior: of the top, and of the details given the coarse band
bands         the prior that codes band by band and channel by channel
networks      the networks of couplings and priors, and how each is frozen
fused         the networks of bands, each as one compiled function
mixing        from networks' integers to those of the coder
units         what the coder's integers count
corrections   what a picture corrects of its distributions
adaptation    how these adapt from symbol to symbol
tables        distributions as intervals of integers, which the coder shares out
kernels       the coder's compiled loops
rans          the entropy coder: integers <-> bytes
"""
