"""The allocator: counts and definitions in, allocations out."""
