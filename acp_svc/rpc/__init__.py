"""The gRPC face: translates between the contract and the rules, decides nothing."""
