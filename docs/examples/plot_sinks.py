"""
Sinks
=====

Test.
"""

import posprobe
