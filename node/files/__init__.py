"""Files, descriptors and standard output of this process, none of which may make it wait or leave half a file.

Everybody in node/ and bootstrap/ may use them.
"""
