// Drives a discovery flow from its creation to its completion, and watches it at the same time.
//
//   node drive.mjs --address 127.0.0.1:50051 [--await-approval] [--account UUID --engagement UUID] [--user NAME]
//
// Without an account and an engagement it works for a tenant of its own making.
// Prints one line for each thing that it sees; ends with 1 when anything is not as the contract says.

import { randomUUID } from 'node:crypto';
import { EventEmitter } from 'node:events';
import { parseArgs } from 'node:util';

import { Connection } from './connection.mjs';
import { Refusal } from './refusal.mjs';
import { events } from './watch.mjs';

const { values: options } = parseArgs({
  options: {
    address: { type: 'string', default: '127.0.0.1:50051' },
    account: { type: 'string', default: randomUUID() },
    engagement: { type: 'string', default: randomUUID() },
    user: { type: 'string', default: 'node' },
    'await-approval': { type: 'boolean', default: false }, // somebody else approves; the drive waits for it
  },
});

const connection = new Connection(options.address, options);
const seen = new EventEmitter(); // what the watch saw: one event per phase, named after it

try {
  const state = { json: JSON.stringify({ started_by: 'drive.mjs' }) };
  const { flow } = await connection.change('CreateFlow', { type: 'discovery', display_name: 'Driven by Node', labels: { client: 'node' }, state });
  console.log(`flow ${flow.flow_id}`);
  const [revisions, head] = await Promise.all([watch(flow.flow_id), drive(flow.flow_id)]);
  check(revisions === head, `the watch saw ${revisions} revisions of ${head}`);
  console.log(`done: ${head} revisions, every one seen once and in order`);
  connection.close();
} catch (error) {
  console.error(error instanceof Refusal ? `refused: ${error}` : error);
  process.exit(1); // the other half still runs
}

/** How many revisions there were, once the flow has ended. */
async function watch(flowId) {
  const story = events(connection, flowId, 0, (revision, why) => console.log(`resuming after revision ${revision}: ${why}`));
  let count = 0;
  for (;;) {
    const { done, value } = await story.next();
    if (done) {
      console.log(`end ${value}`);
      check(value === 'WATCH_END_REASON_FLOW_TERMINAL', `the watch ended because of ${value}`);
      return count;
    }
    count += 1;
    const told = value.changes.map(text).join('; ');
    console.log(`revision ${value.revision} ${bare(value.status)} ${value.progress_percent.toFixed(1)} % by ${value.actor}: ${told}`);
    for (const { phase } of value.changes) if (phase) seen.emit(phase.phase, phase);
  }
}

/** The flow's last revision, once every phase is complete. */
async function drive(flowId) {
  for (;;) {
    const { flow } = await connection.read('GetFlow', { flow_id: flowId, view: 'FLOW_VIEW_BASIC' });
    if (flow.status === 'FLOW_STATUS_COMPLETED') return flow.revision;
    const ready = flow.children.flatMap(({ phases }) => phases).filter((phase) => phase.next_states.includes('PHASE_STATE_IN_PROGRESS'));
    check(ready.length > 0, `no phase of the flow, which is ${flow.status}, can begin`);
    await Promise.all(ready.map((phase) => work(flowId, phase))); // phases that do not depend on each other go side by side
  }
}

/** One phase from its beginning to COMPLETED. */
async function work(flowId, { name, requires_approval: requiresApproval }) {
  const move = (to, reason) => connection.change('TransitionPhase', { flow_id: flowId, transition: { phase: name, to: `PHASE_STATE_${to}`, reason } });
  await move('IN_PROGRESS');
  await connection.change('ReportProgress', { flow_id: flowId, progress: { phase: name, fraction: 0.5, message: 'half way' } });
  if (!requiresApproval) {
    await move('COMPLETED');
    return;
  }
  console.log(`refused ${await refusal(() => move('COMPLETED'), 'INVALID_PHASE_TRANSITION')}`);
  const approved = becomes(name, 'COMPLETED'); // listens before the phase is put up, so that no answer is too quick
  await move('WAITING_APPROVAL', 'mapping is ready to be looked at');
  if (options['await-approval']) console.log(`waiting for the approval of ${name}`);
  else await move('COMPLETED', 'looks right');
  await approved;
}

/** Resolves when the watch sees the phase enter the state; rejects when it sees that it will not. */
function becomes(phase, state) {
  return new Promise((resolve, reject) => {
    seen.on(phase, ({ to_state: now, reason }) => {
      if (now === `PHASE_STATE_${state}`) resolve();
      else if (/FAILED|RETRY_NEEDED|ROLLED_BACK/.test(now)) reject(new Error(`${phase} is ${bare(now)} instead of ${state}: ${reason}`));
    });
  });
}

/** The refusal that `call` meets. Throws when there is none, or another than the expected one. */
async function refusal(call, reason) {
  try {
    await call();
  } catch (error) {
    if (error instanceof Refusal && error.reason === reason) return error;
    throw error;
  }
  throw new Error(`the service did what it should have refused with ${reason}`);
}

/** One change in one line. */
function text({ kind, [kind]: change }) {
  if (kind === 'created') return `created ${change.type} "${change.display_name}"`;
  if (kind === 'child_started') return `began ${change.type}`;
  if (kind === 'document') return `${change.document} now ${change.size_bytes} bytes`;
  if (kind !== 'phase') return kind;
  const reason = change.reason && ` (${change.reason})`;
  if (change.from_state === change.to_state) return `${change.phase} ${Math.round(change.to_fraction * 100)} % done${reason}`;
  return `${change.phase} ${bare(change.from_state)} -> ${bare(change.to_state)}${reason}`;
}

function bare(value) {
  return value.replace(/^(FLOW_STATUS|PHASE_STATE)_/, '');
}

function check(claim, otherwise) {
  if (!claim) throw new Error(otherwise);
}
