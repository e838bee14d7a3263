"""Measurements that the documents quote; every figure is made again by one command."""
