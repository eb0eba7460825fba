// A connection to Flowledger that speaks for one tenant's user. The protos are read as they are: nothing is generated.

import { randomUUID } from 'node:crypto';
import { fileURLToPath } from 'node:url';

import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

import { Refusal } from './refusal.mjs';

const PROTOS = fileURLToPath(new URL('../../protos', import.meta.url));
const CALL_MILLISECONDS = 20_000;

const { flowledger } = grpc.loadPackageDefinition(
  protoLoader.loadSync('flowledger/v1/flow_service.proto', {
    includeDirs: [PROTOS],
    keepCase: true, // flow_id stays flow_id: the names of the contract, of its error texts and of the README
    enums: String,
    longs: Number, // revisions and counts stay far below 2^53; documents travel as JSON text and are not touched by this
    defaults: true,
    oneofs: true, // event.changes[n].kind names the field that is set
  }),
);

const OPTIONS = {
  // A server that vanished is noticed, and found again, within seconds.
  'grpc.keepalive_time_ms': 10_000,
  'grpc.keepalive_timeout_ms': 5_000,
  'grpc.initial_reconnect_backoff_ms': 100,
  'grpc.max_reconnect_backoff_ms': 2_000,
  'grpc.max_receive_message_length': 16 * 1024 * 1024,
  // A restart of the server is not an error. Safe for changes too, as each carries a request_id.
  'grpc.service_config': JSON.stringify({
    loadBalancingConfig: [{ pick_first: {} }],
    methodConfig: [
      {
        name: [{ service: 'flowledger.v1.FlowService' }],
        retryPolicy: { maxAttempts: 5, initialBackoff: '0.2s', maxBackoff: '2s', backoffMultiplier: 2, retryableStatusCodes: ['UNAVAILABLE'] },
      },
    ],
  }),
};

export class Connection {
  #stub;
  #metadata = new grpc.Metadata({ waitForReady: true });

  /**
   * @param {string} address host:port
   * @param {{account: string, engagement: string, user: string}} caller account and engagement are UUIDs, together the tenant
   */
  constructor(address, { account, engagement, user }) {
    this.#stub = new flowledger.v1.FlowService(address, grpc.credentials.createInsecure(), OPTIONS);
    this.#metadata.set('x-client-account-id', account);
    this.#metadata.set('x-engagement-id', engagement);
    this.#metadata.set('x-user-id', user);
  }

  /** The response of a reading RPC. Throws Refusal. */
  read(rpc, request) {
    return new Promise((resolve, reject) => {
      const options = { deadline: Date.now() + CALL_MILLISECONDS };
      this.#stub[rpc](request, this.#metadata, options, (error, response) => (error ? reject(new Refusal(error)) : resolve(response)));
    });
  }

  /** The response of a changing RPC. The request_id makes a repeat return the first answer instead of changing twice. Throws Refusal. */
  change(rpc, request) {
    return this.read(rpc, { request_id: randomUUID(), ...request });
  }

  /** The stream of a WatchFlow; watch.mjs makes one that lasts out of it. */
  open(request) {
    return this.#stub.WatchFlow(request, this.#metadata);
  }

  close() {
    this.#stub.close();
  }
}
