package beacon

// Sign signs any bytes, as somebody could who has the key.
func Sign(b []byte, k Key) []byte { return sign(b, k) }
