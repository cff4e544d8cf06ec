//! BFV over RNS: parameters, keys, encryption, packing, flooding and modulus switching.
