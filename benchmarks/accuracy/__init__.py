"""How accurate a merge is: scenarios, architectures and rivals on small public image sets."""
