"""What the latents are drawn from, and how they become bytes (source coding).

distribution  discretised logistics and their mixtures, real and in the coder's integers
prior         the hierarchical prior: of the top, and of the details given the coarse band
bands         the prior that codes band by band and channel by channel
networks      the convolutional networks of couplings and priors
tables        distributions as intervals of integers, which the coder shares out
rans          the entropy coder: integers <-> bytes
"""
