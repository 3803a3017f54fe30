"""Noria on one machine: its servers, its processes, up and down as one."""
