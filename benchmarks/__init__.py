"""Measurements that are no tests: they take hours and write their findings down."""
