"""The DNS server: packets, zones, the resolvers that are asked in turn, and the sockets."""
