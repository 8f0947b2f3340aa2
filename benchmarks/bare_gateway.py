"""The yardstick of `front.py`: a gateway with nothing in it, no validation, no routing, no handling of failures.

python -m benchmarks.bare_gateway gateway --nats URL --tokenizer FILE   (prints its port)
python -m benchmarks.bare_gateway worker --nats URL
"""

import argparse
import asyncio
import json
import zlib

import nats
import uvloop
from aiohttp import web
from nats.aio.msg import Msg
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


async def gateway(url: str, tokenizer_file: str) -> None:
    nc = await nats.connect(url)
    tokenizer = Tokenizer.from_file(tokenizer_file)

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in body["messages"])
        ids = tokenizer.encode(text + "<|im_start|>assistant\n", add_special_tokens=False).ids
        queue: asyncio.Queue[bytes] = asyncio.Queue()

        async def on_token(msg: Msg) -> None:
            queue.put_nowait(msg.data)

        inbox = nc.new_inbox()
        subscription = await nc.subscribe(inbox, cb=on_token)
        await nc.publish("bare.work", json.dumps({"ids": ids, "max": body["max_tokens"]}).encode(), reply=inbox)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        stream = DecodeStream(skip_special_tokens=True)
        while token := await queue.get():
            piece = stream.step(tokenizer, int(token)) or ""
            chunk = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": piece}}]}
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        await subscription.unsubscribe()
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


async def worker(url: str) -> None:
    nc = await nats.connect(url)
    running: list[list[object]] = []
    wake = asyncio.Event()

    async def on_work(msg: Msg) -> None:
        work = json.loads(msg.data)
        running.append([msg.reply, zlib.crc32(bytes(str(work["ids"]), "ascii")), work["max"]])
        wake.set()

    await nc.subscribe("bare.work", cb=on_work)
    while True:
        await wake.wait()
        for stream in list(running):
            reply, state, left = stream
            assert isinstance(reply, str) and isinstance(state, int) and isinstance(left, int)
            token = b"%d" % (state % 400 + 20)
            await nc.publish(reply, token)
            stream[1:] = zlib.crc32(token, state), left - 1
            if left == 1:
                await nc.publish(reply, b"")
                running.remove(stream)
        if not running:
            wake.clear()
        await asyncio.sleep(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("gateway", "worker"))
    parser.add_argument("--nats", required=True)
    parser.add_argument("--tokenizer", default="")
    options = parser.parse_args()
    uvloop.run(gateway(options.nats, options.tokenizer) if options.role == "gateway" else worker(options.nats))


if __name__ == "__main__":
    main()
