"""What a run is made of, apart from the method: how it is built, saved, resumed, measured and shown."""
