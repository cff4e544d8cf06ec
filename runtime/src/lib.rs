//! Processes, sockets, files and time: pi-server, pi-client and pi-demo over QUIC.
