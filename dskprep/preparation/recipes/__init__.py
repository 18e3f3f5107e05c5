"""What can be done to a series: the default, and three ways of 2017 with their defects. Each is a module."""
