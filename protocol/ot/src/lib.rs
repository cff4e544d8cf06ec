//! Correlated oblivious transfer, both directions, as message-in message-out state machines.
