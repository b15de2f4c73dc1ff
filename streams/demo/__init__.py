"""The demo: the product on real input and on a simulated shop, through a real Kafka and a real worker."""
