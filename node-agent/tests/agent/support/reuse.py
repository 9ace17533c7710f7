"""A number of a process that is used again, in a namespace of processes of its own, where this is its first.

reuse.py AGENT-BINARY AGENT-YAML SOCKET REQUEST-IN-HEX

Prints what became of three connections, a word each:
- of a process that lives: "served" or "refused"
- of one that the agent accepts when its process has ended and a child of the same number has the descriptor
- of one that was accepted before that
"""
import os, signal, socket, subprocess, sys, time

binary, config, path, request = sys.argv[1:5]
request = bytes.fromhex(request)
agent = subprocess.Popen([binary, "--config", config], stdout=sys.stderr)


def connect():
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(path)
    return stream


def ask(stream):
    """Whether there comes a certificate before the connection ends."""
    stream.settimeout(5)
    said = b""
    try:
        stream.sendall(request)
        while b"BEGIN CERTIFICATE" not in said:
            data = stream.recv(65536)
            if not data:
                return "refused"
            said += data
    except (BrokenPipeError, ConnectionResetError):
        return "refused"
    except TimeoutError:
        return "silence after " + repr(said)
    return "served"


def heir(before, accepted):
    """Asks as a process that has the number and the descriptor of the one that connected, after `before`."""
    out, into = os.pipe()
    first = os.fork()
    if first == 0:
        number = os.getpid()
        stream = connect()
        if accepted:
            # The agent's settings: it has accepted.
            stream.sendall(request[:33])
            stream.recv(9)
        middle = os.fork()
        if middle:
            # The number is free once our parent has heard of our end.
            os._exit(0)
        while os.getppid() != 1:
            time.sleep(0.001)
        while os.path.exists("/proc/%d" % number):
            time.sleep(0.001)
        for _ in range(1000):
            with open("/proc/sys/kernel/ns_last_pid", "w") as last:
                last.write(str(number - 1))
            child = os.fork()
            if child == 0:
                if os.getpid() != number:
                    os._exit(1)
                before()
                answer = ask(stream) if not accepted else rest(stream)
                os.write(into, answer.encode())
                os._exit(0)
            if os.waitpid(child, 0)[1] == 0:
                os._exit(0)
        os.write(into, b"its number was not to be had")
        os._exit(1)
    os.waitpid(first, 0)
    os.close(into)
    answer = b""
    while data := os.read(out, 1000):
        answer += data
    return answer.decode()


def rest(stream):
    global request
    request = request[33:]
    return ask(stream)


living = "nothing"
deadline = time.time() + 40
while time.time() < deadline:
    try:
        if (living := ask(connect())) == "served":
            break
    except OSError:
        pass
    time.sleep(0.05)
print(living)
os.kill(agent.pid, signal.SIGSTOP)
print(heir(lambda: os.kill(agent.pid, signal.SIGCONT), False))
print(heir(lambda: None, True))
agent.terminate()
agent.wait()
