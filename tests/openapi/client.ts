// Drives the server at the given URL through the TypeScript client that @hey-api/openapi-ts generates.
//
// tsc checks this file in strict mode, so the types in the description have to match their use here.

import { deepStrictEqual, ok, strictEqual } from 'node:assert';

import { checkHealth, getAgent, heartbeat, listAgents, register, searchCapabilities } from './generated';
import type { AgentRecord, AgentStatus, Problem, Registration } from './generated';
import { client } from './generated/client.gen';

const id = 'typescript-client';
const registration: Registration = {
    agent_id: id,
    agent_name: 'TypeScript client',
    base_url: 'http://typescript-client:8000',
    capabilities: [{ name: 'typescript_driving' }],
    metadata: { team: 'a' },
};

async function use(): Promise<void> {
    const record: AgentRecord = (await register({ body: registration, throwOnError: true })).data;
    const status: AgentStatus = record.status;
    strictEqual(status, 'active');
    strictEqual(record.metadata.team, 'a');
    deepStrictEqual(record.capabilities[0]?.tags, []);
    // Fields that are always present are not unions.
    ok(record.registered_at <= record.last_heartbeat && record.revision > 0);
    strictEqual(record.load, null);

    const plain = await heartbeat({ path: { id }, throwOnError: true });
    strictEqual(plain.data.registration_tag, record.registration_tag);
    const busy = await heartbeat({ path: { id }, body: { status: 'busy', load: 0.5 }, throwOnError: true });
    strictEqual(busy.data.status, 'busy');

    const query = { q: 'typescript driv', status: 'busy', healthy: true } as const;
    const matches = (await searchCapabilities({ query, throwOnError: true })).data;
    deepStrictEqual(matches.map((match) => [match.agent_id, match.healthy, match.load]), [[id, true, 0.5]]);
    const unhealthy = await searchCapabilities({ query: { ...query, healthy: false }, throwOnError: true });
    deepStrictEqual(unhealthy.data, []);

    const health = (await checkHealth({ path: { id }, throwOnError: true })).data;
    strictEqual(health.status, 'healthy');
    ok(health.reason === null && health.seconds_since_heartbeat >= 0);

    const agents = (await listAgents({ throwOnError: true })).data;
    ok(agents.some((agent) => agent.agent_id === id));
}

async function fail(): Promise<void> {
    const unknown: Problem | undefined = (await getAgent({ path: { id: 'nobody' } })).error;
    strictEqual(unknown?.status, 404);
    deepStrictEqual(unknown.errors, []);

    const body = { ...registration, agent_name: '', base_url: 'nowhere' };
    const invalid: Problem | undefined = (await register({ body })).error;
    strictEqual(invalid?.status, 422);
    deepStrictEqual(invalid.errors.map((error) => error.field), ['agent_name', 'base_url']);
    ok(invalid.errors.every((error) => error.message));
}

client.setConfig({ baseUrl: process.argv[2] });
use()
    .then(fail)
    .catch((error) => {
        console.error(error);
        process.exitCode = 1;
    });
