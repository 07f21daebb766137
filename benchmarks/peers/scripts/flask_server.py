"""The server of the exercise, as somebody who does the exercise has it: python flask_server.py MODEL PORT"""

import sys
import time

from flask import Flask, jsonify, request
from transformers import pipeline

model, port = sys.argv[1:]
generator = pipeline("text-generation", model=model, device=-1)
app = Flask(__name__)


@app.get("/health")
def health():
    return jsonify({"status": "healthy", "model": model})


@app.post("/generate")
def generate():
    try:
        body = request.get_json()
        prompt, max_length = body.get("prompt", ""), body.get("max_length", 50)
        temperature = body.get("temperature", 0.7)
        if not prompt:
            return jsonify({"error": "Prompt is required"}), 400
        if max_length > 200:
            return jsonify({"error": "max_length cannot exceed 200"}), 400
        start = time.time()
        [answer] = generator(prompt, max_length=max_length, temperature=temperature, num_return_sequences=1)
        parameters = {"max_length": max_length, "temperature": temperature}
        return jsonify(
            {
                "prompt": prompt,
                "generated_text": answer["generated_text"],
                "inference_time_seconds": round(time.time() - start, 2),
                "parameters": parameters,
            }
        )
    except Exception as error:
        return jsonify({"error": str(error)}), 500


app.run(host="127.0.0.1", port=int(port), debug=False)
