"""A process that connects to the agent: what it is given on a socket of its own, it says there.

relay.py LISTEN AGENT          one connection for each that comes
relay.py LISTEN AGENT inherit  connects once, and leaves the rest to a child that has the descriptor
"""
import os, signal, socket, sys, threading


def connect(path):
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(path)
    return stream


def pump(one, other):
    try:
        while data := one.recv(65536):
            other.sendall(data)
    except OSError:
        pass
    for end in (one, other):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def relay(client, agent):
    both = [threading.Thread(target=pump, args=pair, daemon=True) for pair in ((client, agent), (agent, client))]
    for direction in both:
        direction.start()
    return both


listen, agent = sys.argv[1:3]
inherited = connect(agent) if sys.argv[3:] == ["inherit"] else None
if inherited and os.fork():
    signal.pause()
listener = socket.socket(socket.AF_UNIX)
listener.bind(listen + ".new")
os.chmod(listen + ".new", 0o777)
listener.listen(64)
os.rename(listen + ".new", listen)
while True:
    client, _ = listener.accept()
    for direction in relay(client, inherited or connect(agent)):
        if inherited:
            direction.join()
    if inherited:
        break
