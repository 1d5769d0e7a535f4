"""Blocks: several layers derived as one."""
