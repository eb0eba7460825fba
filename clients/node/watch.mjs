// A watch that lasts: it takes the stream up again where it broke, until the service says that the flow is over.

import { setTimeout as delay } from 'node:timers/promises';

import { Refusal } from './refusal.mjs';

const HEARTBEAT_SECONDS = 5;
const SILENCE_MILLISECONDS = 3 * HEARTBEAT_SECONDS * 1000;
const PATIENCE_MILLISECONDS = 60_000;
const LONGEST_PAUSE_MILLISECONDS = 2_000;
// After any other end the stream is asked for again: what stands in the way of that, the service then says as an error.
const OVER = new Set(['WATCH_END_REASON_FLOW_TERMINAL', 'WATCH_END_REASON_FLOW_DELETED']);

/**
 * Every event of the flow after a revision, each once and in order; then the reason why there are no more, for example
 * WATCH_END_REASON_FLOW_TERMINAL, as the generator's return value.
 *
 * Throws Refusal when the service refuses the watch, and when it cannot be reached for a minute.
 *
 * @param {import('./connection.mjs').Connection} connection
 * @param {string} flowId
 * @param {number} after the last revision that is known already; 0 is the very beginning
 * @param {(revision: number, why: string) => void} resuming told before the stream is opened again
 */
export async function* events(connection, flowId, after, resuming) {
  let position = after;
  let token = ''; // where to go on; until there is one, the revision says it
  let pause = 100;
  let heard = Date.now();
  for (;;) {
    let why = 'the stream broke off';
    let refusal;
    const where = token
      ? { flow_id: flowId, resume_token: token }
      : { flow_id: flowId, start: 'WATCH_START_AFTER_REVISION', after_revision: position };
    const stream = connection.open({ ...where, heartbeat_interval: { seconds: HEARTBEAT_SECONDS } });
    stream.on('error', () => {}); // a cancelled stream reports that it was cancelled, when nobody iterates it any more
    const silence = setTimeout(() => stream.cancel(), SILENCE_MILLISECONDS); // not even heartbeats: the connection is dead
    try {
      for await (const { message, event, end, resume_token: next } of stream) {
        silence.refresh();
        heard = Date.now();
        pause = 100;
        if (message === 'event') {
          if (event.revision !== position + 1) throw new Error(`revision ${event.revision} follows ${position}: the watch has a gap`);
          position = event.revision;
          token = next;
          yield event;
          silence.refresh(); // the reader's own time does not count
        } else if (message === 'end') {
          if (OVER.has(end.reason)) return end.reason;
          why = end.message;
          token = next;
        } else {
          token = next; // opened, or a heartbeat
        }
      }
    } catch (error) {
      if (error.metadata === undefined) throw error; // not from gRPC
      refusal = new Refusal(error);
      if (!refusal.passing || Date.now() - heard > PATIENCE_MILLISECONDS) throw refusal;
      why = refusal.message;
    } finally {
      clearTimeout(silence);
      stream.cancel();
    }
    resuming(position, why);
    // Not all clients at once, and not sooner than the server asks.
    await delay(Math.max(refusal?.retryMilliseconds ?? 0, pause * (0.5 + Math.random())));
    pause = Math.min(pause * 2, LONGEST_PAUSE_MILLISECONDS);
  }
}
