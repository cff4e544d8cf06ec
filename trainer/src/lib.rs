//! Trains networks whose activations a two-party computation can afford.
