// Tell an agent something with nothing but a NATS client (npm install @nats-io/transport-node):
// node examples/inbox.mjs "$(cat .ayllu/bus.url)" support. examples/inbox.py is the same in Python.
import { randomUUID } from "node:crypto";
import { connect, createInbox, headers } from "@nats-io/transport-node";

const [url, agent] = process.argv.slice(2);
const { username, password, host } = new URL(url);
// The credentials stand in the address: those of `ayllu up` are a user and a password.
const connection = await connect({
  servers: host,
  ...(password ? { user: username, pass: password } : username ? { token: username } : {}),
});
const reply = createInbox();
const answers = connection.subscribe(reply, { max: 1, timeout: 60_000 });
const told = headers();
told.set("Nats-Msg-Id", randomUUID()); // Published again under the same id, it is the same turn.
told.set("Ayllu-Reply-To", reply);
const message = { role: "user", content: "Which city is the capital of France?" };
const subject = `ayllu.v1.agent.${agent}.inbox`;
// The bus answers once the message is stored.
await connection.request(subject, JSON.stringify(message), { headers: told, timeout: 5_000 });
for await (const answer of answers) {
  const { turn, error } = answer.json();
  if (error) throw new Error(error.message);
  console.log(turn.response_message.content);
}
await connection.close();
