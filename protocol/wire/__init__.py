"""What peers say to each other and publish in the DHT, and how it lies on a stream.

Plain values, bounded and validated when they are decoded. Everybody may import them.
"""
