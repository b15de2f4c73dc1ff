package bench;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StoreQueryParameters;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.QueryableStoreTypes;
import org.apache.kafka.streams.state.Stores;

/** All events of a unit in its state; an event adds what the unit counts to after it, less before. */
public final class Join {
    static final long HOUR_MS = 3_600_000;
    static final AtomicLong SEEN = new AtomicLong();
    static final CountDownLatch DONE = new CountDownLatch(1);
    static volatile long beganNs;
    static volatile long endedNs;

    record Exposure(long at, String id, String experiment, String arm) {}

    record Conversion(long at, String id) {}

    static final class State {
        final List<Exposure> exposures = new ArrayList<>();
        final List<Conversion> conversions = new ArrayList<>();

        static State decode(byte[] raw) throws IOException {
            State state = new State();
            if (raw == null) {
                return state;
            }
            DataInputStream in = new DataInputStream(new ByteArrayInputStream(raw));
            for (int n = in.readInt(); n > 0; n--) {
                state.exposures.add(new Exposure(in.readLong(), in.readUTF(), in.readUTF(), in.readUTF()));
            }
            for (int n = in.readInt(); n > 0; n--) {
                state.conversions.add(new Conversion(in.readLong(), in.readUTF()));
            }
            return state;
        }

        byte[] encode() throws IOException {
            ByteArrayOutputStream bytes = new ByteArrayOutputStream(64 * (1 + exposures.size()));
            DataOutputStream out = new DataOutputStream(bytes);
            out.writeInt(exposures.size());
            for (Exposure e : exposures) {
                out.writeLong(e.at);
                out.writeUTF(e.id);
                out.writeUTF(e.experiment);
                out.writeUTF(e.arm);
            }
            out.writeInt(conversions.size());
            for (Conversion c : conversions) {
                out.writeLong(c.at);
                out.writeUTF(c.id);
            }
            return bytes.toByteArray();
        }

        /** experiment|arm|hour -> trials, successes. */
        Map<String, long[]> counted(long windowMs) {
            Map<String, String> arms = new HashMap<>();
            Map<String, List<Exposure>> touches = new HashMap<>();
            for (Exposure e : exposures) {
                String trial = e.experiment + "|" + e.at / HOUR_MS;
                String arm = arms.putIfAbsent(trial, e.arm);
                if (arm == null || arm.equals(e.arm)) {
                    touches.computeIfAbsent(e.experiment, k -> new ArrayList<>()).add(e);
                }
            }
            Set<String> successes = new HashSet<>();
            for (Conversion c : conversions) {
                for (List<Exposure> own : touches.values()) {
                    for (int i = own.size() - 1; i >= 0; i--) {
                        Exposure e = own.get(i);
                        if (e.at <= c.at) {
                            if (c.at - e.at < windowMs) {
                                successes.add(e.experiment + "|" + e.at / HOUR_MS);
                            }
                            break;
                        }
                    }
                }
            }
            Map<String, long[]> found = new HashMap<>();
            arms.forEach((trial, arm) -> {
                int bar = trial.indexOf('|');
                String key = trial.substring(0, bar) + "|" + arm + trial.substring(bar);
                found.put(key, new long[] {1, successes.contains(trial) ? 1 : 0});
            });
            return found;
        }
    }

    static final class Counter implements Processor<byte[], byte[], Void, Void> {
        private final JsonFactory json = new JsonFactory();
        private final long windowMs;
        private final long nEvents;
        private KeyValueStore<byte[], byte[]> units;
        private KeyValueStore<String, byte[]> counts;

        Counter(long windowMs, long nEvents) {
            this.windowMs = windowMs;
            this.nEvents = nEvents;
        }

        @Override
        public void init(ProcessorContext<Void, Void> context) {
            units = context.getStateStore("units");
            counts = context.getStateStore("counts");
        }

        @Override
        public void process(Record<byte[], byte[]> record) {
            if (SEEN.get() == 0) {
                beganNs = System.nanoTime();
                System.out.println("{\"began\": 0}");
                System.out.flush();
            }
            try {
                count(record);
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
            if (SEEN.incrementAndGet() == nEvents) {
                endedNs = System.nanoTime();
                DONE.countDown();
            }
        }

        private void count(Record<byte[], byte[]> record) throws IOException {
            Map<String, String> fields = new HashMap<>();
            try (JsonParser parser = json.createParser(record.value())) {
                while (parser.nextToken() != null) {
                    if (parser.currentToken() == JsonToken.FIELD_NAME) {
                        String name = parser.currentName();
                        parser.nextToken();
                        fields.put(name, parser.getText());
                    }
                }
            }
            State state = State.decode(units.get(record.key()));
            long at = Long.parseLong(fields.get("timestamp"));
            String exposureId = fields.get("exposure_id");
            String id = exposureId != null ? exposureId : fields.get("conversion_id");
            boolean known = exposureId != null
                    ? state.exposures.stream().anyMatch(e -> e.id.equals(id))
                    : state.conversions.stream().anyMatch(c -> c.id.equals(id));
            if (known) {
                return;
            }
            Map<String, long[]> before = state.counted(windowMs);
            if (exposureId != null) {
                state.exposures.add(new Exposure(at, id, fields.get("experiment_id"), fields.get("arm_id")));
                state.exposures.sort(Comparator.comparingLong(Exposure::at).thenComparing(Exposure::id));
            } else {
                state.conversions.add(new Conversion(at, id));
            }
            Map<String, long[]> after = state.counted(windowMs);
            before.forEach((key, old) -> after.merge(
                    key, new long[] {-old[0], -old[1]}, (a, b) -> new long[] {a[0] + b[0], a[1] + b[1]}));
            after.forEach((key, change) -> {
                if (change[0] != 0 || change[1] != 0) {
                    byte[] raw = counts.get(key);
                    ByteBuffer old = raw == null ? ByteBuffer.allocate(16) : ByteBuffer.wrap(raw);
                    counts.put(key, ByteBuffer.allocate(16)
                            .putLong(old.getLong(0) + change[0])
                            .putLong(old.getLong(8) + change[1])
                            .array());
                }
            });
            units.put(record.key(), state.encode());
        }
    }

    public static void main(String[] args) throws Exception {
        Properties config = new Properties();
        config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
        config.put(StreamsConfig.APPLICATION_ID_CONFIG, args[3]);
        config.put(StreamsConfig.STATE_DIR_CONFIG, args[4]);
        config.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, args[5]);
        config.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
        long windowMs = Long.parseLong(args[6]);
        long nEvents = Long.parseLong(args[7]);
        Topology topology = new Topology();
        topology.addSource("sources", Serdes.ByteArray().deserializer(), Serdes.ByteArray().deserializer(),
                args[1], args[2]);
        topology.addProcessor("join", () -> new Counter(windowMs, nEvents), "sources");
        topology.addStateStore(Stores.keyValueStoreBuilder(
                Stores.persistentKeyValueStore("units"), Serdes.ByteArray(), Serdes.ByteArray())
                .withCachingEnabled(), "join");
        topology.addStateStore(Stores.keyValueStoreBuilder(
                Stores.persistentKeyValueStore("counts"), Serdes.String(), Serdes.ByteArray())
                .withCachingEnabled(), "join");
        try (KafkaStreams streams = new KafkaStreams(topology, config)) {
            streams.start();
            DONE.await();
            Map<String, long[]> totals = new HashMap<>();
            try (KeyValueIterator<String, byte[]> all = streams.store(StoreQueryParameters.fromNameAndType(
                    "counts", QueryableStoreTypes.<String, byte[]>keyValueStore())).all()) {
                all.forEachRemaining(each -> {
                    ByteBuffer value = ByteBuffer.wrap(each.value);
                    totals.merge(each.key, new long[] {value.getLong(0), value.getLong(8)},
                            (a, b) -> new long[] {a[0] + b[0], a[1] + b[1]});
                });
            }
            StringBuilder out = new StringBuilder("{\"seconds\": " + (endedNs - beganNs) / 1e9 + ", \"counts\": [");
            String comma = "";
            for (Map.Entry<String, long[]> each : totals.entrySet()) {
                String[] key = each.getKey().split("\\|");
                out.append(comma).append(String.format("[\"%s\", \"%s\", %s, %d, %d]",
                        key[0], key[1], key[2], each.getValue()[0], each.getValue()[1]));
                comma = ", ";
            }
            System.out.println(out.append("]}"));
            System.out.flush();
            System.in.read();
        }
    }
}
