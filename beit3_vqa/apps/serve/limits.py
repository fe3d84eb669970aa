"""Limits on what a client may ask of the server. `data.images` limits the pixels of an image."""

MAX_UPLOAD_BYTES = 32 * 2**20  # the image
MAX_FORM_BYTES = 128 * 2**10  # everything else of a request's body
MAX_BODY_BYTES = MAX_UPLOAD_BYTES + MAX_FORM_BYTES
MAX_BODY_SECONDS = 60.0  # until the whole body has come
MAX_REFUSED_SECONDS = 1.0  # for which the body of a refused request is still read
MAX_IDLE_SECONDS = 10.0  # for which a connection may send no request, or not all of its headers
MAX_QUESTION = 1000  # characters
MAX_OPTION = 300  # characters
MAX_FIELDS = 40  # of a form; the most options are 26

MAX_CONNECTIONS = 128  # more are told to come back
MAX_SOCKETS = 512  # more aren't even told: a process may have 1,024 open files
MAX_PENDING = 32  # connections that the system keeps for us; with uvicorn's 2,048 one that hangs up holds up all others
MAX_WAITING = 64  # questions that wait for the model; an image of the size that a model sees is a megabyte
WINDOW_SECONDS = 0.01  # how long the model waits for a second question when it has one
BATCH_SIZE = 8
# oneDNN and PyTorch compile a product anew for each size of batch and text, and keep 1,024 of them each, some 150 MiB.
# They read these variables when torch is loaded.
COMPILED_SHAPES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "LRU_CACHE_CAPACITY": "16"}
REST_SECONDS = 5.0  # without a question, after which the system gets back what was freed
SHUTDOWN_SECONDS = 30  # for requests that are being answered when the server is stopped
