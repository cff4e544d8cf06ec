//! Prime fields, NTT, RNS, polynomials and the online convolution.
