"""Several models side by side, from their stored files.

lineup         who is compared with whom: models of architectures, or variants of one checkpoint
architectures  tables and tests
asides         what stands beside them: sinks, replaced position 0, checks
hypotheses     H1 to H3 as claims
page           the report as one HTML page
"""
