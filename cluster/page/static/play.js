// The playground: one question, several answers that come side by side. It speaks to the page's own server alone.
"use strict";

const asking = { stop: null };

function card(index, of) {
  const box = document.createElement("article"), text = document.createElement("p"), foot = document.createElement("footer");
  text.className = "answer writing";
  foot.textContent = of > 1 ? `answer ${index + 1}` : "";
  box.append(text, foot);
  return { box, text, foot };
}

function said(words, isWrong = false) {
  const line = $("play-told");
  line.textContent = words;
  line.classList.toggle("wrong", isWrong);
}

// Calls `take` with each line of JSON as it comes.
async function lines(response, take) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) take(JSON.parse(part));
  }
}

async function ask(event) {
  event.preventDefault();
  if (asking.stop) { asking.stop.abort(); return; }
  const num = Number($("play-n").value), cards = Array.from({ length: num }, (_, at) => card(at, num));
  $("answers").replaceChildren(...cards.map((one) => one.box));
  asking.stop = new AbortController();
  $("play-go").textContent = "Stop";
  said("waiting for the first token");
  let hasBegun = false;
  const take = (line) => {
    if (line.error) { said(line.error, true); return; }
    if (line.tokens !== undefined) {
      said(`${line.tokens.toLocaleString("en")} tokens, the first after ${Math.round(line.first_s * 1000)} ms, ${Math.round(line.rate).toLocaleString("en")} tokens/s`);
      return;
    }
    if (!hasBegun) { hasBegun = true; said("writing"); }
    const one = cards[line.index];
    // What a model wrote is text, never markup.
    one.text.append(line.text);
    if (line.ended) {
      one.text.classList.remove("writing");
      one.foot.textContent = [one.foot.textContent, line.ended === "length" ? "cut at its length" : line.ended].filter(Boolean).join(" · ");
    }
  };
  try {
    const response = await fetch("/play", {
      method: "POST",
      headers: { "content-type": "application/json", "x-key": key },
      signal: asking.stop.signal,
      body: JSON.stringify({
        text: $("play-text").value, n: num, max_tokens: Number($("play-max").value),
        temperature: Number($("play-heat").value), model: $("play-model").value, chat: $("play-chat").checked,
        token: $("play-token").value,
      }),
    });
    await lines(response, take);
  } catch (error) {
    if (error.name === "AbortError") said("stopped"); else said("the page's server does not answer", true);
  } finally {
    for (const one of cards) one.text.classList.remove("writing");
    asking.stop = null;
    $("play-go").textContent = "Ask";
  }
}

// Called with every list: the playground is shown where a gateway can be asked, and names the models that are served.
function takePlay(told) {
  $("play").hidden = !told.can_play;
  const names = [...new Set(told.workers.map((one) => one.model))], select = $("play-model");
  if (names.join() !== [...select.options].map((one) => one.value).join()) {
    select.replaceChildren(...names.map((name) => new Option(name)));
    $("play-model-label").hidden = names.length < 2;
  }
}

$("play").addEventListener("submit", ask);
$("play-heat").addEventListener("input", () => { $("play-heat-told").textContent = Number($("play-heat").value).toFixed(1); });
$("play-text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("play").requestSubmit();
});
