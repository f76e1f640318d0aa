"""The DNS server: packets, zones, the chain of resolvers, and the sockets."""
